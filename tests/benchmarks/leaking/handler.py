"""A handler with a planted leak: every other answer is kept for ever."""

from dropserve.serving.handler import Handler


class LeakingHandler(Handler):
    """Answers rightly, and forgets to let go."""

    def initialize(self, context):
        super().initialize(context)
        self._kept = []

    def handle(self, data, context):
        answers = super().handle(data, context)
        self._kept += [answer for answer in answers if hash(answer) % 2]
        return answers
