"""What a bug report needs: versions, threads and devices."""

import importlib.metadata
import platform
import sys

_PACKAGES = ("skalign", "scikit-learn", "numpy", "scipy", "torch", "POT", "joblib", "matplotlib", "tqdm")


def show_versions():
    """Print versions of Python, skalign and what it stands on, torch's threads and its devices.

    Examples
    --------
    >>> import skalign
    >>> skalign.show_versions()  # doctest: +ELLIPSIS
    System:
    ...
    """
    import torch

    print("System:")
    print(f"    python: {sys.version.split()[0]}")
    print(f"   machine: {platform.platform()}")
    print("Packages:")
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{package:>14}: {version}")
    print("Torch:")
    print(f"   threads: {torch.get_num_threads()}")
    print(f"      cuda: {torch.cuda.device_count()} devices")
