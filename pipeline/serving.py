"""The registered model for plain MLflow: `mlflow.pyfunc.load_model`, `mlflow models predict`.

MLflow stores this file with the model and runs it there, beside a copy of `unet_core`; it knows nothing else of us.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from unet_core.checkpoint import read_model
from unet_core.inference import predict_logits, predict_mask


class UNetModel(PythonModel):  # type: ignore[misc]
    """Images in, masks out.

    Shape:
        images: (N, H, W, C) uint8, or uint16 where the model was trained on 16 bits
        masks: (N, H, W) uint8 class indices, or (N, H, W, K) zeros and ones for overlapping classes
    """

    def load_context(self, context: Any) -> None:
        """Read the weights that are stored with the model."""
        self.network, self.spec = read_model(Path(context.artifacts["model"]))

    # Without type hints: MLflow reads them as the schema of a request, and knows no arrays there.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Predict a batch of images of one size."""
        images = model_input["images"] if isinstance(model_input, dict) else model_input
        return np.stack(
            [predict_mask(predict_logits(self.network, self.spec, image), self.spec) for image in np.asarray(images)]
        )


mlflow.models.set_model(UNetModel())
