"""The API under `/api/v1`, thin: read the request, call one use case in one transaction, answer."""
