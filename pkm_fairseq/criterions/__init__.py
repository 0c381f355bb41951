from .sentence_prediction import PKMSentencePredictionCriterion

__all__ = ["PKMSentencePredictionCriterion"]
