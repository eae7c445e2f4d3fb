"""Uncertainty that can be acted on: measures, calibration, guaranteed sets and intervals. numpy alone.

``metrics``, ``ranking`` and ``mixtures`` measure; ``regression``, ``calibration``, ``conformal``,
``intervals`` and ``ood`` calibrate; ``record`` keeps what was calibrated in a version's manifest.
"""
