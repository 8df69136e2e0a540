#!/usr/bin/env python3
"""Writes lr_schedules.tsv: the learning rates that PyTorch's schedulers give.

Usage: python3 tests/data/lr_schedules.py > tests/data/lr_schedules.tsv

Columns, separated by tabs: settings (JSON, as this crate stores them), metrics given to the
scheduler (empty except for `plateau`), learning rate of the parameter group at the start, its
learning rates from position 0 on. Lines with equal settings are the groups of one optimizer.
Made with PyTorch 2.13.0; needs nothing but `torch`.
"""

import json
import math
import warnings

import torch
from torch.optim import lr_scheduler as lrs

BASES = [0.1, 0.0037]


def build(config, optimizer):
    """PyTorch's scheduler for settings of this crate."""
    config = dict(config)
    kind = config.pop("scheduler")
    if kind == "step":
        return lrs.StepLR(optimizer, **config)
    if kind == "multi_step":
        return lrs.MultiStepLR(optimizer, **config)
    if kind == "exponential":
        return lrs.ExponentialLR(optimizer, **config)
    if kind == "cosine":
        return lrs.CosineAnnealingLR(optimizer, config["t_max"], config["eta_min"])
    if kind == "cosine_restarts":
        return lrs.CosineAnnealingWarmRestarts(
            optimizer, config["t_0"], config["t_mult"], config["eta_min"])
    if kind == "one_cycle":
        anneal = {"cosine": "cos", "linear": "linear"}[config.pop("anneal")]
        return lrs.OneCycleLR(optimizer, anneal_strategy=anneal, cycle_momentum=False, **config)
    if kind == "plateau":
        return lrs.ReduceLROnPlateau(optimizer, **config)
    assert kind == "warmup", kind
    steps = config["steps"]
    warmup = lrs.LinearLR(optimizer, config["start_factor"], total_iters=steps)
    if config["then"] is None:
        return warmup
    return lrs.SequentialLR(optimizer, [warmup, build(config["then"], optimizer)], [steps])


def rates(config, positions, metrics):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in BASES]
    optimizer = torch.optim.SGD([{"params": [p], "lr": b} for p, b in zip(parameters, BASES)])
    scheduler = build(config, optimizer)
    found = [[group["lr"] for group in optimizer.param_groups]]
    for position in range(1, positions):
        optimizer.step()
        scheduler.step(*([metrics[position - 1]] if metrics else []))
        found.append([group["lr"] for group in optimizer.param_groups])
    return zip(*found)


def write(positions, scheduler, metrics=(), **settings):
    config = {"scheduler": scheduler, **settings}
    for base, row in zip(BASES, rates(config, positions, metrics)):
        columns = [json.dumps(config), " ".join(map(repr, metrics)), repr(base),
                   " ".join(repr(float(lr)) for lr in row)]
        print("\t".join(columns))


def plateau(metrics, **settings):
    defaults = {"mode": "min", "factor": 0.1, "patience": 10, "threshold": 1e-4,
                "threshold_mode": "rel", "cooldown": 0, "min_lr": 0.0, "eps": 1e-8}
    write(len(metrics) + 1, "plateau", metrics, **{**defaults, **settings})


def one_cycle(total_steps, **settings):
    defaults = {"max_lr": 0.3, "pct_start": 0.3, "anneal": "cosine", "div_factor": 25.0,
                "final_div_factor": 1e4, "three_phase": False}
    write(total_steps, "one_cycle", total_steps=total_steps, **{**defaults, **settings})


def warmup(positions, start_factor, steps, then=None):
    write(positions, "warmup", start_factor=start_factor, steps=steps, then=then)


def main():
    warnings.simplefilter("ignore")
    write(14, "step", step_size=3, gamma=0.1)
    write(6, "step", step_size=1, gamma=1.5)
    write(14, "multi_step", milestones=[2, 5, 5, 11], gamma=0.3)
    write(4, "multi_step", milestones=[0, 2], gamma=0.5)
    write(40, "exponential", gamma=0.93)
    write(20, "cosine", t_max=7, eta_min=0.0)
    write(60, "cosine", t_max=50, eta_min=0.002)
    write(5, "cosine", t_max=1, eta_min=0.01)
    write(13, "cosine_restarts", t_0=4, t_mult=1, eta_min=0.001)
    write(24, "cosine_restarts", t_0=3, t_mult=2, eta_min=0.0)
    write(30, "cosine_restarts", t_0=1, t_mult=3, eta_min=0.0)
    for anneal in ["cosine", "linear"]:
        for three_phase in [False, True]:
            one_cycle(23, anneal=anneal, three_phase=three_phase)
            one_cycle(10, anneal=anneal, three_phase=three_phase, pct_start=0.45, div_factor=4.0,
                      final_div_factor=50.0)
    one_cycle(6, pct_start=0.0)
    one_cycle(6, pct_start=1.0)
    one_cycle(1)
    one_cycle(2)
    valley = [math.cos(i / 7.0) + 1.5 for i in range(40)]
    plateau(valley, patience=1)
    plateau(valley, patience=2, cooldown=3, factor=0.5)
    plateau(valley, patience=0, threshold=0.05, factor=0.3, min_lr=1e-3)
    plateau(valley, patience=1, threshold=0.02, threshold_mode="abs", factor=0.7, eps=0.003)
    plateau(valley, mode="max", patience=1, factor=0.6)
    plateau([-v for v in valley], mode="max", patience=1, threshold_mode="abs", cooldown=1)
    plateau([math.inf, 1.0, 1.0, math.inf, -math.inf, 1.0, 1.0, 1.0], patience=1)
    warmup(9, 1.0 / 3.0, 5)
    warmup(5, 1.0, 3)
    warmup(4, 0.01, 1)
    warmup(14, 0.1, 4, {"scheduler": "step", "step_size": 3, "gamma": 0.5})
    warmup(14, 0.1, 4, {"scheduler": "multi_step", "milestones": [1, 6], "gamma": 0.5})
    warmup(14, 0.25, 3, {"scheduler": "exponential", "gamma": 0.9})
    warmup(20, 0.001, 6, {"scheduler": "cosine", "t_max": 10, "eta_min": 0.0005})
    warmup(20, 0.5, 2, {"scheduler": "cosine_restarts", "t_0": 4, "t_mult": 2, "eta_min": 0.0})


if __name__ == "__main__":
    main()
