"""A small serving host has numpy, and neither torch nor scipy."""

import subprocess
import sys


def test_the_package_imports_where_there_is_no_torch_and_no_scipy():
    code = (
        "import sys, importlib, pkgutil\n"
        "for name in ('torch', 'scipy', 'sklearn', 'mapie'): sys.modules[name] = None\n"
        "import dropserve.uncertainty as u\n"
        "found = [m.name for m in pkgutil.iter_modules(u.__path__)]\n"
        "assert 'record' in found\n"
        "[importlib.import_module('dropserve.uncertainty.' + name) for name in found]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
