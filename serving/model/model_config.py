"""model-config.yaml: how TorchServe runs a model. Imports nothing, as `ready` runs every few seconds."""


def torchserve_yaml(
    workers: int = 1, response_timeout_s: int = 600, startup_timeout_s: int = 300, queue_size: int = 100
) -> str:
    """Write model-config.yaml. Once it is there, TorchServe reads these keys from it alone, not from its own properties."""
    return (
        f"minWorkers: {workers}\n"
        f"maxWorkers: {workers}\n"
        "batchSize: 1\n"
        "maxBatchDelay: 0\n"
        f"jobQueueSize: {queue_size}\n"
        f"responseTimeout: {response_timeout_s}\n"
        f"startupTimeout: {startup_timeout_s}\n"
    )
