"""The exit handler: how the run ended, in MLflow. Kubeflow alone has it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(status: dsl.PipelineTaskFinalStatus):
    """Record the outcome on the run's parent in MLflow; its own trouble is only printed."""
    from un2clip.outcome import finish

    finish(status.state, status.error_message or "")
