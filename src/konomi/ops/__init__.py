"""The equations of RLHF, as pure functions of tensors.

One topic a file: sums under masks (``masked``), logits and log-probabilities (``logits``; ``head`` without logits), distance
from the reference and shaped rewards (``kl``), advantages (``advantages``), losses of policy and critic (``losses``), of
reward models (``preference``) and of a policy that learns from pairs itself (``dpo``). Only torch is imported; nothing here
reads a setting, draws a random number, edits its input, asks for the kind of device (but to name it to autocast), moves a tensor
between devices, or logs.

Conventions: True in a mask counts. Index t is response token t: its log-probability, the value before it, the reward
after it. Shape suffixes: B sequences, R response positions, V vocabulary, N tokens in any leading shape.
"""

from konomi.ops.advantages import best_of_n, gae, group_relative, leave_one_out
from konomi.ops.dpo import dpo_loss, ipo_loss, log_ratios, smooth_labels
from konomi.ops.head import linear_logprobs
from konomi.ops.kl import KlKind, adaptive_kl_coef, full_kl, kl_loss, kl_per_token, pid_kl_coef, shaped_rewards
from konomi.ops.logits import Blocks, entropy, linear_logits, selected_logprobs
from konomi.ops.losses import importance_weights, policy_loss, value_loss
from konomi.ops.masked import masked_mean, masked_sum, masked_var, whiten
from konomi.ops.preference import conservative_scores, label_loss, preference_loss, score_loss

__all__ = [
    "Blocks", "KlKind", "adaptive_kl_coef", "best_of_n", "conservative_scores", "dpo_loss", "entropy", "full_kl", "gae",
    "group_relative", "importance_weights", "ipo_loss", "kl_loss", "kl_per_token", "label_loss", "leave_one_out", "linear_logits",
    "linear_logprobs", "log_ratios", "masked_mean", "masked_sum", "masked_var", "pid_kl_coef", "policy_loss",
    "preference_loss", "score_loss", "selected_logprobs", "shaped_rewards", "smooth_labels", "value_loss", "whiten",
]  # fmt: skip
