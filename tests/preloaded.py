"""All that a run imports as it goes along, imported once for all processes that are forked off."""

from importlib import import_module

MODULES = [
    *("training.run.train", "librosa.feature.spectral", "torch._dynamo", "matplotlib.backends.backend_agg", "git"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "alembic.command", "alembic.config"),
    *("model_archiver.model_packaging_utils", "PIL.WebPImagePlugin", "pytest"),
]

for module in MODULES:
    import_module(module)
