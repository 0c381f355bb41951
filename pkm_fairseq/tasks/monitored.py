"""Figures that are logged once for each validation set, those of memory usage among them."""

from itertools import chain

import torch.distributed as dist
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask

from pkm_fairseq.monitor import UsageMonitor
from pkm_fairseq.pictures import UsageWriter


class MonitoredTask(FairseqTask):
    """Logs figures over whole validation sets; of memory usage if the criterion asks for them.

    A criterion asks with its options as ``usage_config``. The figures are metrics that fairseq
    computes when it asks for them, at the end for the whole set, so they can be the
    ``--best-checkpoint-metric``; they leave nothing in checkpoints.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.monitor = UsageMonitor()
        self._counts_usage = self._figures_logged = False
        self._pictures = None

    def build_criterion(self, cfg, *args, **options):
        criterion = super().build_criterion(cfg, *args, **options)
        usage = getattr(criterion, "usage_config", None)
        if usage is not None:
            self._counts_usage = True
            self.monitor = UsageMonitor(usage.pkm_usage_per_head, usage.pkm_drift_tokens)
            is_first = not dist.is_initialized() or dist.get_rank() == 0
            if usage.tensorboard_logdir and is_first:
                self._pictures = UsageWriter(usage.tensorboard_logdir)
        return criterion

    def get_batch_iterator(self, dataset, **options):
        """Does what fairseq's task does, which is where a validation set begins."""
        batches = super().get_batch_iterator(dataset, **options)
        name = next((name for name, known in self.datasets.items() if known is dataset), None)
        # fairseq fills up the other workers' shards with the first batch of the first worker.
        others = batches.frozen_batches[:1] if options.get("shard_id") else ()
        self.monitor.begin_set(name, dataset, chain.from_iterable(others))
        self._figures_logged = False
        return batches

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        step = super().train_step
        arguments = (sample, model, criterion, optimizer, update_num, ignore_grad)
        if not self._counts_usage:
            return step(*arguments)
        with self.monitor.watch_training(model, counted=not ignore_grad):
            return step(*arguments)

    def valid_step(self, sample, model, criterion):
        if not self._counts_usage:
            return super().valid_step(sample, model, criterion)
        with self.monitor.watch_validation(model, sample, self.source_dictionary.pad()):
            return super().valid_step(sample, model, criterion)

    def begin_valid_epoch(self, epoch, model):
        super().begin_valid_epoch(epoch, model)
        self.monitor.end_window()

    def figures(self):
        """Returns the figures of the validation set so far, by the name under which to log them."""
        return self.monitor.figures()

    def reduce_metrics(self, logging_outputs, criterion):
        """Logs what the criterion logs and, in validation, the figures."""
        super().reduce_metrics(logging_outputs, criterion)
        # Once a set: what a batch logs fairseq computes at once, and again at the set's end.
        if not criterion.training and not self._figures_logged:
            self._figures_logged = True
            for name in self.figures():
                metrics.log_derived(name, lambda meters, name=name: self.figures()[name])

    def post_validate(self, model, stats, agg):
        """Ends the set, which fairseq does in training alone, and draws its usage."""
        counts = self.monitor.counts()
        self.monitor.end_set()
        if self._pictures:
            self._pictures.write(self.monitor.name, counts, stats["num_updates"])
