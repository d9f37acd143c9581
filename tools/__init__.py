"""Tools for models: what they are, which there are, and how their calls are run. Usable without the proxy.

Reading order: errors -> items -> context -> parameters -> base -> registry -> toolbox -> executor.
"""
