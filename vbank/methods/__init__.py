"""The five methods: one file a chapter, each with its settings and its `factors`."""

from vbank.methods.base import Config, Method, Site, delta
from vbank.methods.lora import LoRA
from vbank.methods.prolora import PRoLoRA
from vbank.methods.tied_lora import TiedLoRA
from vbank.methods.vb_lora import VBLoRA
from vbank.methods.vera import VeRA

METHODS: dict[str, type[Config]] = {config.method: config for config in (LoRA, VeRA, TiedLoRA, PRoLoRA, VBLoRA)}

__all__ = ["METHODS", "Config", "LoRA", "Method", "PRoLoRA", "Site", "TiedLoRA", "VBLoRA", "VeRA", "delta"]
