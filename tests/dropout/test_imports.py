"""A small serving host has numpy and no torch."""

import subprocess
import sys


def test_masks_statistics_and_engine_import_where_there_is_no_torch():
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import dropserve.dropout.engine, dropserve.dropout.masks\n"
        "import dropserve.dropout.rows, dropserve.dropout.statistics\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
