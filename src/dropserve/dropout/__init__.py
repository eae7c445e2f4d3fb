"""The heart: dropout sites, masks, masked programs and Monte Carlo statistics.

``masks``, ``statistics`` and ``engine`` need numpy alone.
"""
