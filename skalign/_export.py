"""Fitted aligners as torch modules and ONNX graphs. Knows torch and scikit-learn's transformers; loaded by who asks for it."""

import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ._core.layers import Standardize, UnitRows, matrix
from ._files import replacing


def preprocessing_layers(transformer):
    """Layers of a fitted transformer of one view.

    Raises
    ------
    NotImplementedError
        If it is none of those that have layers.
    """
    if transformer is None or transformer == "passthrough":
        return []
    if isinstance(transformer, FrozenEstimator):
        return preprocessing_layers(transformer.estimator)
    if isinstance(transformer, Pipeline):
        return [layer for _, step in transformer.steps for layer in preprocessing_layers(step)]
    if type(transformer) is StandardScaler:
        mean, scale = transformer.mean_, transformer.scale_  # a mean may be there and not be used
        return [Standardize(mean if transformer.with_mean else 0.0, 1.0 if scale is None else scale)]
    if type(transformer) is Normalizer and transformer.norm == "l2":
        return [UnitRows()]
    if type(transformer) is PCA:
        variances = transformer.explained_variance_
        scale = np.sqrt(variances).clip(np.finfo(variances.dtype).eps) if transformer.whiten else 1.0
        return [Standardize(transformer.mean_), matrix(transformer.components_.T), Standardize(scale=scale)]
    raise NotImplementedError(
        f"{transformer!r:.80} has no torch layers; StandardScaler, Normalizer('l2'), PCA and pipelines of them have. "
        "Use one of these, or transform the view before it reaches the aligner."
    )


def write_onnx(module, n_features, name, path):
    """Write a module of one view as an ONNX graph for any number of rows."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("`to_onnx` writes with onnx and onnxscript: pip install 'skalign[onnx]'.") from error
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))  # of what torch's exporter calls
        program = torch.onnx.export(
            module,
            (torch.zeros(2, n_features),),
            dynamo=True,
            verbose=False,
            input_names=[name],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("n_rows")},),
        )
        graph = program.model_proto
        for node in graph.graph.node:
            del node.metadata_props[
                :
            ]  # among them the paths of the files on this machine that each operation came from
        temporary.write_bytes(graph.SerializeToString())
