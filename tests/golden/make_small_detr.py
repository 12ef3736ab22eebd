"""Makes small_detr.safetensors by running the original: `python make_small_detr.py OUT` in a checkout of its code.

facebookresearch/detr at 29901c51, unchanged; only the residual network is narrower than torchvision's names allow.
"""

import json
import sys

import torch
import torchvision
from models.backbone import BackboneBase, FrozenBatchNorm2d, Joiner
from models.detr import DETR
from models.position_encoding import PositionEmbeddingSine
from models.transformer import Transformer
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from util.misc import nested_tensor_from_tensor_list

STEM, WIDTHS, DEPTHS = 8, (16, 32, 48, 64), (1, 2, 1, 3)
DIM, HEADS, ENCODER, DECODER, FEEDFORWARD = 16, 2, 2, 3, 24
CLASSES, QUERIES = 5, 8


def build(*, dilation: bool) -> nn.Module:
    net = ResNet(Bottleneck, list(DEPTHS), norm_layer=FrozenBatchNorm2d)
    net.conv1, net.bn1 = nn.Conv2d(3, STEM, 7, 2, 3, bias=False), FrozenBatchNorm2d(STEM)
    net.inplanes = STEM
    for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        stride = 1 if stage == 0 else 2
        layer = net._make_layer(Bottleneck, width // 4, depth, stride=stride, dilate=dilation and stage == 3)
        setattr(net, f"layer{stage + 1}", layer)
    base = BackboneBase(net, train_backbone=True, num_channels=WIDTHS[-1], return_interm_layers=False)
    backbone = Joiner(base, PositionEmbeddingSine(DIM // 2, normalize=True))
    backbone.num_channels = WIDTHS[-1]
    transformer = Transformer(DIM, HEADS, ENCODER, DECODER, FEEDFORWARD, 0.1, return_intermediate_dec=True)
    return DETR(backbone, transformer, CLASSES, QUERIES, aux_loss=True).eval()


def calibrate(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Draw statistics around those of real activations, so that signals stay of order one."""
    mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
    norm.running_mean.copy_(mean + 0.5 * variance.sqrt() * torch.randn_like(mean))
    norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.5, 2))
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_(0.2, 0.5)


torch.manual_seed(20261122)
torch.set_num_threads(1)
torch.set_grad_enabled(False)
whole = [torch.randint(-16, 17, (3, h, w), dtype=torch.int8) for h, w in ((61, 90), (40, 77), (33, 25))]
images = [image.float() / 8 for image in whole]
model = build(dilation=False)
for parameter in model.parameters():
    if parameter.dim() > 1:  # attention and heads far from their flat start
        parameter.mul_(1.6)
for module in model.modules():
    if isinstance(module, nn.LayerNorm):
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_(0, 0.2)
    elif isinstance(module, nn.Linear):
        module.bias.normal_(0, 0.3)
hooks = [m.register_forward_pre_hook(calibrate) for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
model(nested_tensor_from_tensor_list(images))
for hook in hooks:
    hook.remove()

tensors = {f"w/{key}": value.clone() for key, value in model.state_dict().items()}
tensors |= {f"image{index}_times_8": image for index, image in enumerate(whole)}
for name, dilation in (("plain", False), ("dc5", True)):
    network = build(dilation=dilation)
    network.load_state_dict(model.state_dict())
    output = network(nested_tensor_from_tensor_list(images))
    found = {"": output, **{f"aux{index}_": aux for index, aux in enumerate(output["aux_outputs"])}}
    for prefix, part in found.items():
        tensors[f"{name}/{prefix}logits"], tensors[f"{name}/{prefix}boxes"] = part["pred_logits"], part["pred_boxes"]
    for index, image in enumerate(images):
        alone = network(nested_tensor_from_tensor_list([image]))
        tensors[f"{name}/alone{index}_logits"] = alone["pred_logits"][0]
        tensors[f"{name}/alone{index}_boxes"] = alone["pred_boxes"][0]
info = {
    "made_by": "make_small_detr.py beside this file, in a checkout of facebookresearch/detr 29901c51",
    "stem_width": STEM,
    "stage_widths": WIDTHS,
    "depths": DEPTHS,
    "hidden_dim": DIM,
    "heads": HEADS,
    "encoder_layers": ENCODER,
    "decoder_layers": DECODER,
    "feedforward_dim": FEEDFORWARD,
    "queries": QUERIES,
    "classes": CLASSES,
    "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
}
save_file({key: value.contiguous() for key, value in tensors.items()}, sys.argv[1], {"info": json.dumps(info)})
