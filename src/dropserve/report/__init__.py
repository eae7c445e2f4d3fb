"""The page that comes with every version: ``report.html``, self-contained, for people.

``evidence`` is what an export hands over; ``about``, ``learning``, ``proof``, ``classes``, ``sets``,
``values`` and ``examples`` turn it into ``content``; ``svg`` and ``pictures`` draw; ``page`` renders
``template.html``.
"""
