use crate::cache::{AttentionMask, KeysValues, Position};

/// What an attention layer leaves to later ones that have no keys and values of their own, for one step.
#[derive(Debug, Clone, Default)]
pub struct SharedKeysValues {
    /// Where the step's tokens stand.
    position: Option<Position>,
    /// Of each sequence: what its tokens may see, and which of it each of them sees.
    rows: Vec<(KeysValues, AttentionMask)>,
}

impl SharedKeysValues {
    pub(super) fn begin(&mut self, position: Position) {
        self.position = Some(position);
        self.rows.clear();
    }

    pub(super) fn push(&mut self, held: KeysValues, mask: AttentionMask) {
        self.rows.push((held, mask));
    }

    pub(super) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&KeysValues, &AttentionMask)> {
        self.rows.iter().map(|(held, mask)| (held, mask))
    }
}
