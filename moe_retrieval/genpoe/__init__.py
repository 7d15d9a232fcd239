"""Generated passage experts (GenPoE): passages are retrieved and reranked, become experts, and answer questions.

The commands, each `python -m moe_retrieval.genpoe.NAME`, in the order in which the data goes through them: download,
retrieve, prepare, train_reranker, rerank, train, generate, answer, evaluate; facts writes data for an experiment
without a network.
"""
