"""`vbank run` under FSDP2 without a GPU: accelerate shards on accelerators alone, so it is told of some."""

from typing import Any

import accelerate.state
import torch
from accelerate.utils import DistributedType


def on_gloo(self: Any, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def on_cpu(self: Any) -> None:
    self.device = torch.device("cpu")


if __name__ == "__main__":
    accelerate.state.PartialState._prepare_backend = on_gloo
    accelerate.state.PartialState.set_device = on_cpu
    torch.distributed.init_process_group("gloo")
    import tiny_task

    tiny_task.main()
