"""The ways to save work, a file each: frozen settings that a plan holds, and what carries them out on a denoiser."""

from postdiff.mechanisms.attention import AttentionCache
from postdiff.mechanisms.deepcache import DeepCache
from postdiff.mechanisms.encoder import EncoderPropagation
from postdiff.mechanisms.keys import KeyDownsampling
from postdiff.mechanisms.merging import TokenMerging
from postdiff.mechanisms.scheduled_modules import ScheduledModules
from postdiff.mechanisms.token_cache import TokenCache
from postdiff.plan import Mechanism

MECHANISMS: dict[str, type[Mechanism]] = {
    mechanism.__name__: mechanism
    for mechanism in (
        AttentionCache,
        DeepCache,
        EncoderPropagation,
        KeyDownsampling,
        ScheduledModules,
        TokenCache,
        TokenMerging,
    )
}
