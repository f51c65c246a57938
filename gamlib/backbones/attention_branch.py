"""ABN: Attention Branch Network: Learning of Attention Mechanism for Visual Explanation.

Fukui, Hirakawa, Yamashita, Fujiyoshi 2019, https://arxiv.org/abs/1812.10025, section 3. It is no block but a second
branch of the network: from the map x before the last stage the attention branch predicts the classes itself, and
gives an attention map M(x) by which the perception branch sees x:

    x' = (1 + M(x)) * x        L = L_attention + L_perception        both cross entropies of the same labels

The attention branch is a copy of the last stage with stride 1, BatchNorm, 1x1 to the classes, BatchNorm, ReLU, and from
there 1x1 and average pooling to the class scores, 3x3 and BatchNorm to one channel of attention.
"""

import copy

from torch import Tensor, nn

from gamlib.backbones.networks import MobileNetV2, ResNet
from gamlib.backbones.weights import initialise


class AttentionBranch(nn.Module):
    """[N, C, H, W] -> an attention map [N, 1, H, W] and the branch's own class scores [N, num_classes]."""

    def __init__(self, last_stage: nn.Sequential, num_classes: int) -> None:
        super().__init__()
        self.stage = copy.deepcopy(last_stage)
        for module in self.stage.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
        channels = [m.num_features for m in self.stage.modules() if isinstance(m, nn.BatchNorm2d)][-1]
        self.to_classes = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, num_classes, 1, bias=False),
            nn.BatchNorm2d(num_classes),
            nn.ReLU(),
        )
        self.scores = nn.Conv2d(num_classes, num_classes, 1, bias=False)
        self.gate = nn.Sequential(nn.Conv2d(num_classes, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map and the scores of what the layers before the last stage put out."""
        responses = self.to_classes(self.stage(x))
        return self.gate(responses).sigmoid(), self.scores(responses).mean((2, 3))


class AttentionBranchNetwork(nn.Module):
    """A backbone with an attention branch in front of its last stage.

    In training mode [N, 3, H, W] -> the scores [N, num_classes] of the perception branch, which predict, and of the
    attention branch; the loss is the sum of both branches' losses. In evaluation mode the perception branch's alone.

    Args:
        backbone: it gives away its modules, and is not to be used afterwards.
        num_classes: outputs.
        pretrained: the branch's copy of the last stage keeps the weights of its original, instead of new ones.
    """

    def __init__(self, backbone: ResNet | MobileNetV2, num_classes: int, pretrained: bool = False) -> None:
        super().__init__()
        self.trunk, stage, classifier = backbone.split()
        self.attention_branch = AttentionBranch(stage, num_classes)
        self.perception_branch = nn.Sequential(stage, classifier)
        for part in self.attention_branch.children():
            if not pretrained or part is not self.attention_branch.stage:
                initialise(part)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Scores of images; in evaluation mode too both branches are computed, as the printed FLOPs are counted."""
        x = self.trunk(x)
        attention, scores = self.attention_branch(x)
        predicted: Tensor = self.perception_branch(x + attention * x)
        return (predicted, scores) if self.training else predicted
