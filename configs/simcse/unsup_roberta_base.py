"""Unsupervised SimCSE, RoBERTa-base: Gao, Yao, Chen (EMNLP 2021), Table 5.

    python -m experiments.simcse --config=configs/simcse/unsup_roberta_base.py \
        --config.data.train=wiki1m_for_simcse.txt --config.eval.sts=stsb/dev.tsv

Expected: 76.57 average Spearman x100 over the seven STS test sets, 80.22 on STS-B test.
Settings: batch 512, learning rate 1e-5 (Table A.1); otherwise as BERT-base.

`unsup_roberta_base.py:small`: see unsup_bert_base.py.
"""

from configs.simcse import unsup_bert_base
from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = unsup_bert_base.get_config(cut)
    config.batch.size = 512
    config.optim.learning_rate = 1e-5
    if cut == "small":
        config.batch.size = 128
        config.optim.learning_rate = 1e-3
    else:
        config.model.name = "roberta-base"
    return config
