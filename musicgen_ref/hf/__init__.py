"""MusicGen under transformers' names: change `from transformers import ...` to `from musicgen_ref.hf import ...`.

Names, arguments, defaults, shapes, and the samples under a seed are those of transformers 5.24.0. Its rows (B * K, T)
hold codebook k of clip b in row b * K + k. All numbers are computed by musicgen_ref's own modules; here they are only
called and renamed. The modules inside have transformers' names, too, by which state_dict(), peft and hooks find them. A
part that is set is the one that the whole model runs and saves, whichever way it was set. Some things differ on purpose
(the right column is tested):

===================================================  ==================================  ===============================
                                                     transformers 5.24.0                 here
===================================================  ==================================  ===============================
num_return_sequences = n                             mixes codebooks of different rows   n samples of each prompt
stopping_criteria, max_time, eos_token_id            crash                               what is complete is returned
guidance_scale below 1                               crashes                             interpolates, 0: no text
guidance_scale above 1 with encoder_outputs          crashes                             works
max_length, of a configuration                       grows by 1 and by the prompt        counts the start column, the
                                                                                         prompt and the new columns
max_length of a call, a model's max_new_tokens       max_new_tokens counts               the call's max_length counts
max_length or max_new_tokens that leave no frame     one step is made, or a crash        ValueError
streamer                                             gets the prompt alone               gets every token, and end()
logits_processor                                     guidance is appended to your list;  your list stays; called after
                                                     called before guidance, on both     guidance, so that -inf stays
                                                     halves; -inf gives NaN              -inf
ids of a logits_processor, delayed steps of a prompt codes drawn and dropped             the prompt's
output_attentions, output_hidden_states in generate  None at every step                  real, of the conditional half
output_attentions with SDPA                          an empty tuple                      real
head masks                                           dropped                             work, with SDPA, too
                                                     (4.57: in eager attention alone)
attention_mask missing in generate()                 padding of the text is read         padding is masked
unknown arguments of forward()                       dropped                             ValueError
decoder_inputs_embeds                                every step at the first position    each step at its own
decoder_start_token_id not set, with labels          crashes                             the special token
cache in training                                    returned                            with use_cache=True alone
past_key_values, the name of cache before 5.24       FutureWarning; goes in 5.40         stays, without a warning
past_key_values beside cache                         one of them is dropped              ValueError
input_values of stereo in forward()                  crash                               work
attn_implementation="sdpa" of the whole model        ValueError                          works
from_pretrained(name, **decoder_config)              TypeError                           works
MusicgenForCausalLM of a whole checkpoint            random weights                      loads its decoder
MusicgenForCausalLM.generate()                       num_return_sequences=1 must be      works
                                                     said; the start column is masked;
                                                     text is cached anew at every step;
                                                     top_k is not 50 by default
decoder_start_token_id, pad_token_id, bos_token_id   any number is put in                the special token, or
                                                                                         ValueError
decoder_input_ids beside input_values                one of them is dropped              ValueError
an EnCodec's filters as parameters                   parametrizations.weight.original0   folded: conv.weight; the same
                                                     and original1                       two in state_dict() and files
hooks of a T5 block's halves, of decoder.model       run                                 ValueError: hook what is in it
hooks' arguments                                     of transformers' modules            of ours; results are the same
checkpoints of a Trainer                             the model and config.json           the tensors, from which it
                                                                                         resumes, and which open beside
                                                                                         config=; a callback can write
                                                                                         the rest: see the README
save_pretrained() with an adapter that is not        its layers among the others         ValueError: merge_and_unload()
merged, or with modules that were added
an adapter beside the weights                        applied with peft, ignored without  ValueError: give adapter=True
                                                                                         (merged) or adapter=False
pipeline of a list                                   its loader draws a random number    does not
batch_decode() with a padding_mask                   float64; stereo crashes             float32; stereo works
tokenize() where special tokens take whitespace      with that, so that they have no id  without
whole-number audio                                   taken unscaled, or a crash          int16, int32, uint8: scaled;
                                                                                         others: ValueError
numpy arrays in place of tensors                     crash                               work
another model's processor file beside the weights    that model's processor, or a crash  the processor is a ValueError,
                                                                                         the model opens
audio whose codes are beyond decoder.vocab_size      a crash, or taken for the special   ValueError
                                                     token
decoder.vocab_size above codebook_size               a crash when such a code is drawn   such a code is never drawn
beam search, penalties, bad words, ...               crash or are half applied           ValueError: write a
                                                                                         logits_processor
load_in_8bit                                         bitsandbytes, on CUDA               int8 of decoder and text
                                                                                         encoder, on CPUs
from_sub_models_pretrained of a T5 by its name       AttributeError                      works
from_sub_models_pretrained, projection of the text   random                              the decoder checkpoint's where
                                                                                         it fits
===================================================  ==================================  ===============================
"""

from .callers import BaseStreamer, set_seed
from .conditional import MusicgenForConditionalGeneration
from .configs import AutoConfig, EncodecConfig, GenerationConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config
from .loading import BitsAndBytesConfig
from .modules import EncodecModel, MusicgenForCausalLM, MusicgenModel, PreTrainedModel, T5EncoderModel
from .outputs import ModelOutput
from .pipelines import TextToAudioPipeline, pipeline
from .processor import AutoProcessor, EncodecFeatureExtractor, MusicgenProcessor, T5Tokenizer

# Processors and criteria are functions here, and a list of them is a plain list.
LogitsProcessorList = StoppingCriteriaList = list
# There is one class of each kind, which the automatic choice always is.
AutoTokenizer, AutoFeatureExtractor = T5Tokenizer, EncodecFeatureExtractor
AutoModelForTextToWaveform, T5TokenizerFast = MusicgenForConditionalGeneration, T5Tokenizer

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoModelForTextToWaveform",
    "AutoProcessor",
    "AutoTokenizer",
    "BaseStreamer",
    "BitsAndBytesConfig",
    "EncodecConfig",
    "EncodecFeatureExtractor",
    "EncodecModel",
    "GenerationConfig",
    "LogitsProcessorList",
    "ModelOutput",
    "MusicgenConfig",
    "MusicgenDecoderConfig",
    "MusicgenForCausalLM",
    "MusicgenForConditionalGeneration",
    "MusicgenModel",
    "MusicgenProcessor",
    "PreTrainedModel",
    "StoppingCriteriaList",
    "T5Config",
    "T5EncoderModel",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TextToAudioPipeline",
    "pipeline",
    "set_seed",
]
