from .init_from import InitFromTask
from .masked_lm import PKMMaskedLMTask
from .sentence_prediction import PKMSentencePredictionTask

__all__ = ["InitFromTask", "PKMMaskedLMTask", "PKMSentencePredictionTask"]
