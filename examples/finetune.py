"""Train a converted model further, in one process or in several.

    python finetune.py model.h5 data.npz tuned.pt --epochs 3
    torchrun --nproc-per-node 2 finetune.py model.h5 data.npz tuned.pt --epochs 3

data.npz holds the arrays x (rows, ...) and y (rows, ...). After every epoch the first process
writes tuned.pt, which ``k2t.load`` reads, and tuned.pt.state, from which the same command goes on
if it was interrupted. ``k2t write-back tuned.pt model.h5 new.h5`` returns the weights to Keras.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, nll_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import keras2torch_birnn as k2t

Loss = Callable[..., Tensor]  # of outputs, targets, and the mask of the outputs if there is one


def averaged(values: Loss) -> Loss:
    """Make the mean over valid places of the values of a loss."""

    def loss(outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        each = values(outputs, targets)
        if mask is None:
            return each.mean()
        each = each.flatten(mask.dim()).mean(dim=-1) if each.dim() > mask.dim() else each
        return (each * mask).sum() / mask.sum()

    return loss


def binary(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Compute the losses of a sigmoid output."""
    return binary_cross_entropy(probabilities, targets, reduction="none")


def cross_entropy(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Compute the losses of a softmax output (..., classes) and class numbers (...)."""
    logs = torch.log(probabilities.clamp_min(1e-7))
    each = nll_loss(logs.flatten(0, -2), classes.flatten().long(), reduction="none")
    return each.view(probabilities.shape[:-1])


LOSSES: dict[str, Loss] = {
    "mse": averaged(lambda outputs, targets: (outputs - targets).square()),
    "binary": averaged(binary),
    "classes": averaged(cross_entropy),
}
OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a Keras model")
    parser.add_argument("data", type=Path, help="an .npz with x and y")
    parser.add_argument("out", type=Path, help="the .pt to write")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="rows, of all processes together")
    parser.add_argument(
        "--loss",
        choices=[*LOSSES, "keras"],
        help="keras: the one in the model's file, default with --optimizer keras; else mse",
    )
    parser.add_argument(
        "--optimizer",
        choices=[*OPTIMIZERS, "keras"],
        default="Adam",
        help="keras: the one in the model's file, with its settings and its state",
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="of an optimizer of torch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.loss = options.loss or ("keras" if options.optimizer == "keras" else "mse")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in this process; join the others if ``torchrun`` started several."""
    options = parse_arguments(arguments)
    gpu = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        train(options, torch.device("cuda" if gpu else "cpu"), rank=0, processes=1)
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        train(options, device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def train(options: argparse.Namespace, device: torch.device, rank: int, processes: int) -> None:
    """Train from the last saved epoch to the last wanted one."""
    model, optimizer, compute_loss = read_model(options)
    model.to(device)
    optimizer.load_state_dict(optimizer.state_dict())  # moves it to the parameters' device
    state = options.out.with_name(f"{options.out.name}.state")
    first = resume(state, model, optimizer, device, options.optimizer)
    wrapped = DistributedDataParallel(model) if processes > 1 else model
    with np.load(options.data) as arrays:
        data = TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(
        data, processes, rank, seed=options.seed
    )
    loader = DataLoader(data, batch_size=options.batch // processes, sampler=sampler)
    if rank == 0:
        engines = {choice.engine for of in k2t.explain(model).values() for choice in of}
        print(f"{processes} processes, {device.type}, engines: {', '.join(sorted(engines))}")
    for epoch in range(first, options.epochs):
        sampler.set_epoch(epoch)
        # Dropout after an interruption is as without one.
        torch.manual_seed(options.seed + epoch * processes + rank)
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            x, y = x.to(device), y.to(device)
            loss = compute_loss(wrapped(x), y, mask=k2t.output_mask(model, x))
            loss = loss + k2t.penalty(model)  # what the Keras layers have besides, if anything
            loss.backward()
            optimizer.step()
            k2t.constrain_(model)
            total += loss.item()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {total / len(loader):.6f}", flush=True)
            k2t.save(model, options.out)
            save_state(state, model, optimizer, options.optimizer, epoch + 1)
    if processes > 1:
        dist.barrier()  # nobody ends before the files are written


def read_model(options: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer, Loss]:
    """Read the model, in training mode; make its optimizer and its loss."""
    compiled = k2t.training(options.model) if "keras" in (options.optimizer, options.loss) else None
    model = k2t.convert(options.model) if compiled is None else compiled.model
    model.train()  # k2t.convert returns it in eval mode
    loss: Loss | None = LOSSES.get(options.loss, compiled.loss if compiled else None)
    for note in compiled.notes if compiled else ():
        print(f"note: {note}", file=sys.stderr)
    if loss is None:
        raise SystemExit("give --loss: that of the file is none that k2t has")
    if compiled is not None and options.optimizer == "keras":
        return model, compiled.optimizer, loss
    learning = [p for p in model.parameters() if p.requires_grad]  # what Keras would train
    return model, OPTIMIZERS[options.optimizer](learning, lr=options.rate), loss


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, name: str, epochs: int
) -> None:
    """Write what the next epoch goes on from, in one step; ``name``: of the optimizer."""
    new = path.with_name(f"{path.name}.new")
    held = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**held, "name": name, "epochs": epochs}, new)
    new.replace(path)


def resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, name: str
) -> int:
    """Load what ``save_state`` wrote, if anything; return the number of epochs done."""
    if not path.exists():
        return 0
    held = torch.load(path, map_location=device, weights_only=True)
    if (before := held.get("name", name)) != name:
        raise SystemExit(
            f"{path} was written with --optimizer {before}: go on with that one, or give another "
            "OUT to begin anew"
        )
    model.load_state_dict(held["model"])
    optimizer.load_state_dict(held["optimizer"])
    return int(held["epochs"])


if __name__ == "__main__":
    main()
