"""peft_reads.py DIR BASE: what the real PEFT makes of the adapters in DIR on the model of BASE."""

import sys

import peft
import safetensors.torch
import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 4)
        self.out = torch.nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return x + self.out(torch.tanh(self.fc(x)))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


base = safetensors.torch.load_file(sys.argv[2])
x, _ = base.pop("x"), base.pop("y")
model = Model()
model.load_state_dict(base)
model = peft.PeftModel.from_pretrained(model, sys.argv[1]).eval()
config = model.peft_config["default"]
print(config.lora_dropout)
print(" ".join(repr(float(v)) for v in model(x).detach().flatten()))
