//! Compares Ouzel with reference arrays that other attribution libraries produced.
