"""Every token looks at every token, at a cost that grows as their number, not its square."""

import torch.nn.functional as F
from torch import Tensor

from vitscale.models.attention import Attention, Layout


def positive(vectors: Tensor) -> Tensor:
    """elu(x) + 1, but for x << 0 exp(x), where the sum would be rounded to 0 and a row of zeros divided by 0."""
    return F.relu(vectors) + vectors.clamp(max=0).exp()


class LinearAttention(Attention):
    """Products of elu(x) + 1 in place of the exponential (Katharopoulos et al. 2020, Transformers are RNNs, equations 5 and 7).

    The keys' products with the values are added up once for all queries: O(N D^2 / H + N D^2).  Rotary positions turn queries and keys
    before elu, not after it as in RoFormer (Su et al. 2021, equation 19), so that all weights stay positive and rows sum to 1.
    """

    def mix(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout | None) -> Tensor:
        query, key = positive(query), positive(key)
        summed = key.transpose(-2, -1) @ F.pad(value, (0, 1), value=1.0)       # (B, H, K, K + 1): the last column is the weights' sum
        mixed = query @ summed
        return mixed[..., :-1] / mixed[..., -1:]

    def map(self, query: Tensor, key: Tensor, layout: Layout | None) -> Tensor:
        weights = positive(query) @ positive(key).transpose(-2, -1)
        return weights / weights.sum(dim=-1, keepdim=True)
