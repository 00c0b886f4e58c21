"""The exit handler: how the run ended, in MLflow. Kubeflow alone has it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(nodes: int, volume: str, status: dsl.PipelineTaskFinalStatus):
    """Free what the run left, and record its outcome in MLflow; its own trouble is only printed."""
    from un2clip.cluster.outcome import finish

    finish(status.state, status.error_message or "", nodes=nodes, volume=volume)
