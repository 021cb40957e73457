"""The admin's and the client's pages. Not built yet."""
