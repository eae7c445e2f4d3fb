"""A handler with a planted leak: a copy of every other answer is kept for ever."""

import itertools

from dropserve.serving.handler import Handler


class LeakingHandler(Handler):
    """Answers rightly, and never lets go."""

    def initialize(self, context):
        super().initialize(context)
        self._kept, self._count = [], itertools.count()

    def handle(self, data, context):
        answers = super().handle(data, context)
        # A copy: the encoder's buffer is several times as large as what it wrote.
        self._kept += [bytes(bytearray(answer)) for answer in answers if next(self._count) % 2]
        return answers
