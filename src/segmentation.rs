//! stub
/// stub
pub fn entropy(logits: burn::tensor::Tensor<3>) -> burn::tensor::Tensor<2> {
    let lp = burn::tensor::activation::log_softmax(logits, 2);
    lp.clone().exp().mul(lp).sum_dim(2).neg().squeeze_dim(2)
}
