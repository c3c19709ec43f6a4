r"""Writes a small state dict in the format of torch before 1.6.

pip install torch==2.13.0 && python tests/oracles/make_old_torch.py

`tests/models/test_old_torch.py` reads the file.
"""

import collections
import pathlib

import torch

OUTPUT = pathlib.Path(__file__).with_name("old_torch.pth")


def main():
    numbers = torch.arange(12.0)
    state_dict = collections.OrderedDict(
        transposed=numbers.reshape(3, 4).T,
        part=numbers[5:8],  # of the same storage
        parameter=torch.nn.Parameter(torch.tensor([0.5, -2.0])),
        empty=torch.zeros(0, 3),
        scalar=torch.tensor(7),
        double=torch.tensor([[1e300]], dtype=torch.float64),
        half=torch.tensor([1.5, -0.25], dtype=torch.float16),
        bfloat16=torch.tensor([1.5, -0.25], dtype=torch.bfloat16),
        flags=torch.tensor([True, False]),
    )
    state_dict._metadata = collections.OrderedDict({"": {"version": 1}})
    torch.save(state_dict, OUTPUT, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
