"""The main job, shown and proven: `./just demo`, or `python -m lab.demo` (shell).

    rows      what a step is, and the rows of the table it proves (vocabulary), and how they are played
    stage     the sites and Horizon's processes on them, and what steps ask of them
    joining   steps from the first start of the broker to a plain WireGuard client
    outage    steps without the broker, and what follows its return
    report    the live list of steps, the table, the JSON
    tour      where to look while it stays up

Everything runs in the namespaces of one lab, which is gone when the demo ends, however it ends; what a
killed run left is removed by the next.
"""
