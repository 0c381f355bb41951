from .masked_lm import PKMMaskedLMCriterion
from .sentence_prediction import PKMSentencePredictionCriterion
from .usage import UsageConfig

__all__ = ["PKMMaskedLMCriterion", "PKMSentencePredictionCriterion", "UsageConfig"]
