import logging

# `transformers` imports torchao where it is installed, and that warns, in every process, of kernels for
# devices that are not there.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
