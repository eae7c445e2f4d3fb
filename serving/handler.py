"""The entry point that TorchServe loads from each archive; TorchServe wants exactly one class in this file.

All behaviour is in ``dropserve.serving.handler``. Override a method here to change how this project serves,
then export again: the file travels inside the archives.
"""

from dropserve.serving.handler import Handler


class DropserveHandler(Handler):
    """Answers the plain endpoint NAME and the Monte Carlo endpoint NAME-mc."""
