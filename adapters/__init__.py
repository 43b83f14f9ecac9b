"""Adapters to chat providers and frameworks: a file or a small family each, imported as `memlayer.adapters`.

    openai, anthropic                    clients, through `memlayer.wrap`; stainless: what the two SDKs have in common
    google_genai, ollama, litellm        likewise
    anthropic_memory_tool                Anthropic's memory tool, with its files in the store
    litellm_proxy                        a hook for LiteLLM's gateway
    langchain, langchain_vectorstore     agent middleware and a retriever; a vector store
    langgraph                            a store for graphs
    openai_agents, pydantic_ai           agents
    llama_index                          a memory for its agents and chat engines
    mcp                                  a server for whatever speaks the Model Context Protocol

An adapter knows a provider and one small interface (`memlayer.codec`, `memlayer.injector`), never the store. None is
imported before it is used, and its SDK with it.
"""

__all__: list[str] = []
