/* Texts of the built-in plans: the format is in docs/sharding.md. What they say about SGLang is
 * what the model classes of its release 0.5.23 make. */
#ifndef MODEL_PLANS_BUILTIN_H
#define MODEL_PLANS_BUILTIN_H

extern const char plan_text_llama[];
extern const char plan_text_qwen2[];
extern const char plan_text_qwen3[];
extern const char plan_text_qwen3_moe[];
extern const char plan_text_deepseek_v3[];

#endif
