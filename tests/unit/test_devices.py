import pytest
import torch

from un2clip.config import UserError
from un2clip.devices import pick_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said() -> None:
    """auto falls back to the processor; cuda does not."""
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device is cuda and torch .* sees no GPU; set it to auto or cpu"):
        pick_device("cuda")


def test_unknown_device() -> None:
    """A word that is none of the three is refused with the list."""
    with pytest.raises(UserError, match="device must be one of auto, cpu, cuda, got 'gpu'"):
        pick_device("gpu")
