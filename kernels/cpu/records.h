// What ops/ hands to kernels/: a record for each kernel, made of a few smaller ones. Plain data: the object of an instruction set
// shares no inline code with the rest (see kernels/vector.h). Shapes are named as in kernels/routing.py.

#pragma once

#include <stdint.h>

namespace moe {

enum class Type { fp32, bf16 };
enum class Activation { gelu, gelu_tanh, relu, silu };
enum class Router { softmax, topk_softmax, sigmoid };

// A matrix whose rows lie one behind the other.
struct Rows {
  const void* data;
  Type type;
};

struct MutableRows {
  void* data;
  Type type;
};

struct Plan {
  const int32_t* order;    // [S]
  const int32_t* offsets;  // [E + 1]
  int64_t slots, experts, top_k;
  bool by_slot;  // rows "in plan order" lie in slot order instead: [T, E, ...] where every expert runs on every token
};

// Sizes of the experts and their parameters, all of one type. A null bias is none.
struct Experts {
  Type type;
  Activation activation;
  bool gated;
  int64_t hidden, width;  // H, F
  const void *up_weight, *up_bias, *down_weight, *down_bias;
};

// Slots sorted by expert, those of none last, and where each expert's begin.
struct Sort {
  const int32_t* indices;  // [S], the expert of each slot; one outside of 0..E-1 is none
  int64_t slots, experts;
  int32_t *order, *offsets;  // [S], [E + 1]
};

struct Forward {  // of experts: up, down, or both, in which case `act` is not needed
  Plan plan;
  Experts experts;
  Rows x;
  const float* weights;  // [S]
  void *act, *pre;       // [S, F], [S, U] in plan order, of the experts' type; pre may be null
  MutableRows rows;      // [S, H] in slot order
  Rows residual;         // [S, H] or null
  bool weighted_act;     // the weight is in the activations, and only the bias of `down` still needs it
};

struct DownBackward {
  Plan plan;
  Experts experts;
  Rows grad_y;  // [T, H]
  const void* pre;
  const float* weights;
  void *grad_pre, *weighted_act;
  int64_t parts;        // of the sum over F
  float* grad_weights;  // [S, parts]; a bias counts in the first
};

struct UpBackward {
  Plan plan;
  Experts experts;
  const void* grad_pre;
  MutableRows grad_x;  // [S, H] in slot order
};

// grad_weight[e] = sum over the rows of e of left[row]^T right[row], grad_bias[e] = sum of scale[row] * left[row].
struct WeightGrad {
  Plan plan;
  Type type;
  struct Side {
    Rows rows;
    int64_t size;
    bool by_token;  // rows of tokens, or rows in plan order
  } left, right;
  const float* scales;            // [S] in slot order, or null for ones
  void *grad_weight, *grad_bias;  // grad_bias may be null
};

struct Choose {
  int64_t tokens, experts, top_k;  // top_k 0: all
  Router router;
  bool renormalize;
  const float* selection_bias;  // [E] or null
  const bool* mask;             // [T] or null
  float *logits, *weights;      // [T, E], [T, K] or [T, E]
  int32_t* indices;             // [T, K]
  float* sums;                  // [2E + 2]
};

// The weight that multiplies x is bf16 where both are: their products are exact in fp32. All else is fp32.
struct Gate {
  Choose choose;
  int64_t hidden, features;  // H, G
  Rows x;
  Rows hidden_weight;        // null for a linear gate
  const float* hidden_bias;
  Rows weight;
  const float *bias, *noise;
};

struct ChooseBackward {
  Choose choose;             // logits, weights and indices are read; sums and selection_bias are not used
  const float* grad_weights;  // [T * K], summed over its parts
  const float* grad_sums;     // [2E + 2] or null
  float* grad_logits;
};

// C = A B, computed in fp32: [m, k] x [k, n], or with A transposed, [k, m]^T x [k, n]; then B may be null for a column of ones.
struct Product {
  int64_t m, n, k;
  const float* a;
  Rows b;
  bool transpose_a;
  MutableRows c;
};

struct Combine {
  int64_t tokens, top_k, hidden;
  Rows rows, residual, second;  // of types of their own; null where there is none
  const bool* mask;             // silences the residual of masked tokens
  int64_t terms;                // and the sum of as many `term_rows`, [terms, hidden], scaled by `scales`, [tokens, terms]
  const float *scales, *term_rows;
  MutableRows y;
};

// A whole layer without gradients: y = residual + the mix of experts. The routing is written where `gate` says, or dropped where it
// says nothing.
struct Layer {
  Gate gate;
  Experts experts;
  Rows residual;  // or null
  MutableRows y;
};

// What is dropped: where the hash of `dropout.dropout_hash` is below a number.
struct Drop {
  uint32_t seed, below;
  float scale;  // 1 / (1 - rate), of what is kept
};

struct Attention {
  int64_t tokens, heads, head_size, sequences;
  int64_t stride;    // between the tokens of q, k and v, which may be parts of one tensor; all else is dense
  int64_t v_stride;  // if it is not 0, v is [A * D, v_stride], with tokens side by side; in the forward only
  Type type;
  const int32_t* starts;  // [sequences + 1]
  Drop drop;
  const void *q, *k, *v;
  void* out;   // [T, A, D]; read by the backward
  float* lse;  // [T, A] or null; read by the backward
  const void* grad;
  void *grad_q, *grad_k, *grad_v;
};

struct ResidualNorm {
  int64_t rows, hidden;
  float eps;
  Drop drop;
  Rows x, y;         // [rows, H], of types of their own
  const float *weight, *bias;
  MutableRows out;
  float* stats;  // [rows, 2]: mean and scale of a row; read by the backward
  Rows grad;
  MutableRows grad_x, grad_y;
  float *grad_weight, *grad_bias;
};

struct Linear {
  const void *weight, *bias;
};

struct Norm {
  const float *weight, *bias;
  float eps;
};

// Of a block, for all that follows its attention. Without `up`, there is no feed-forward part.
struct EndWeights {
  Linear out, up, down;
  Norm norm, ffn_norm;
  int64_t width;  // F
  Activation activation;
};

// A block from its attention's output y on, and the following block's q, k and v: hidden = norm(x + out(y)), hidden =
// ffn_norm(hidden + down(activation(up(hidden)))), next_qkv(hidden). A null weight leaves its product out; without y, the
// first norm is left out, and without `up` the second. Between two blocks of an encoder, hidden states may stay as tiles have
// them, and v be written as attention reads it.
struct BlockEnd {
  Type type;
  int64_t tokens, hidden;  // T, H
  float* states;           // of all tiles, which stay; or null
  const float* x;          // [T, H]; null if `states` has it
  Rows y;                  // [T, H]
  EndWeights weights;
  Linear next_qkv;
  float* out_hidden;  // [T, H] or null
  int64_t next_size, next_in_rows;  // features of next_qkv, and those among them that lie in rows: the others follow
  void* out_next;                   // [T, next_in_rows]
  void* out_columns;                // [next_size - next_in_rows, column_stride]: tokens side by side
  int64_t column_stride;
};

// Rows of two tables, added and normalised: of a token, and of its place in its sequence.
struct Embed {
  int64_t tokens, sequences, hidden;
  const int64_t* ids;     // [T]
  const int32_t* starts;  // [sequences + 1]
  const float *token_rows, *position_rows;
  Norm norm;
  float* out;  // [T, H]
};

// A block's feed-forward part is in `end`, or it is a layer of experts, whose tokens are still to be given.
struct EncoderBlock {
  Linear qkv;
  EndWeights end;
  bool routed;
  Gate gate;
  Experts experts;
};

// An encoder: `embed`, then its blocks. Hidden states go to `embed.out`; where `means` is not null, the mean of each
// sequence goes there instead, and hidden states nowhere.
struct Encoder {
  Embed embed;
  float* means;  // [sequences, H]
  Type type;
  int64_t heads, depth;
  const EncoderBlock* blocks;  // [depth], at least one
};

// The mean over the rows of each sequence; zeros for one without.
struct Mean {
  int64_t sequences, hidden;
  const int32_t* starts;
  const float* x;
  float* out;
};

// Rows that are divided by their lengths.
struct Lengths {
  int64_t rows, hidden;
  float* data;
};

}  // namespace moe
