"""Generated passage experts (GenPoE): passages are retrieved and reranked, become experts, and answer questions.

The commands, each `python -m moe_retrieval.genpoe.NAME`, in the order in which the data goes through them: download,
retrieve, prepare, train_reranker, rerank, train, generate, answer, evaluate. Without a network: facts writes
data, train_decoder makes a language model that reads them, and experiment goes the whole way.
"""
