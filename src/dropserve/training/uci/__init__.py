"""Regression tables with published splits: one dropout network a split, nothing chosen by a test row.

What chooses (:mod:`.choose`) and what trains (:mod:`.refit`) take a :class:`~.splits.Part` of training rows.
They run in a process that is given no other rows; the process that holds the test rows only measures.
"""
