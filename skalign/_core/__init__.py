"""The mathematics as plain functions: knows NumPy, SciPy and torch, knows nothing of scikit-learn."""
