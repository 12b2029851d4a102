"""Complete workflows, from settings to a result; the Python API, the command line and the scripts all call them.

Each module is one workflow: a `Settings` dataclass whose fields are also the options of the command, a function that
takes it, and the `Result` that it returns, which can be printed and saved.
"""
