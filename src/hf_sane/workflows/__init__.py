"""The work that people come for, from settings to a result: Python, the command line and scripts all take this road.

Each module is one workflow: a `Settings` dataclass whose fields are also the options of the verb, a function that
takes it, and the `Result` that it returns, which prints, saves and describes itself.
"""
