"""One thread for the tests of the network: on busy cores torch's threads wait for each other."""

import torch

torch.set_num_threads(1)  # 20 times faster when something else runs beside these small networks
