"""vbank: LoRA, VeRA, Tied-LoRA, PRoLoRA and VB-LoRA on any PyTorch model.

>>> import torch, vbank
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
>>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), targets=["0", "2"])
>>> vbank.count(model).trainable
108
"""

from vbank.adapters import Adapter
from vbank.attachment import activate, attach, detach, param_groups
from vbank.audits import audit
from vbank.checkpoint import CheckpointError, load, save
from vbank.counting import Count, count, count_sites
from vbank.interop import from_peft, to_peft
from vbank.merging import enabled, merge, unmerge
from vbank.methods import Config, LoRA, Method, PRoLoRA, Site, TiedLoRA, VBLoRA, VeRA, delta
from vbank.selected_adamw import SelectedAdamW
from vbank.serving import serve

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "CheckpointError",
    "Config",
    "Count",
    "LoRA",
    "Method",
    "PRoLoRA",
    "SelectedAdamW",
    "Site",
    "TiedLoRA",
    "VBLoRA",
    "VeRA",
    "activate",
    "attach",
    "audit",
    "count",
    "count_sites",
    "delta",
    "detach",
    "enabled",
    "from_peft",
    "load",
    "merge",
    "param_groups",
    "save",
    "serve",
    "to_peft",
    "unmerge",
]
