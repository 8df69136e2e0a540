//! Numbers for tensor names: what many ranks say of many tensors is grouped by tensor without
//! comparing every name with many others.
//!
//! Lists of ranks that save the same tensors have the same names in the same order, so that the
//! name that followed the last time is the one that follows; and a list is in order in itself.
//! Where neither helps, a map does.

use std::collections::HashMap;

use crate::tensor::TensorName;

/// Distinct names, numbered as they are met.
#[derive(Default)]
pub(crate) struct Names<'a> {
    names: Vec<&'a TensorName>,
    /// By number, the number that followed when it was met the last time.
    next: Vec<u32>,
    /// The number that a list began with the last time.
    first: u32,
    /// The number of the name before, in the same list.
    before: Option<u32>,
    /// Once names have not been met in ascending order.
    map: Option<HashMap<&'a TensorName, u32>>,
}

impl<'a> Names<'a> {
    /// A new list begins.
    pub(crate) fn begin_list(&mut self) {
        self.before = None;
    }

    /// The number of the next name of the list.
    pub(crate) fn number(&mut self, name: &'a TensorName) -> u32 {
        let likely = match self.before {
            Some(before) if self.is(before, name) => before,
            Some(before) => self.next.get(before as usize).copied().unwrap_or_default(),
            None => self.first,
        };
        let number = if self.is(likely, name) { likely } else { self.find_or_add(name) };
        match self.before.replace(number) {
            None => self.first = number,
            Some(before) if before == number => {}
            Some(before) => {
                if let Some(next) = self.next.get_mut(before as usize) {
                    *next = number;
                }
            }
        }
        number
    }

    /// The number of a name that was met.
    pub(crate) fn find(&self, name: &TensorName) -> Option<u32> {
        match &self.map {
            Some(map) => map.get(name).copied(),
            None => {
                let place = self.names.binary_search(&name).ok()?;
                u32::try_from(place).ok()
            }
        }
    }

    /// How many distinct names there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    fn is(&self, number: u32, name: &TensorName) -> bool {
        self.names.get(number as usize).is_some_and(|known| *known == name)
    }

    fn find_or_add(&mut self, name: &'a TensorName) -> u32 {
        // In ascending order what is beyond the last is new.
        let beyond = self.map.is_none() && self.names.last().is_none_or(|last| *last < name);
        if let Some(number) = (!beyond).then(|| self.find(name)).flatten() {
            return number;
        }
        // More names than that do not fit the memory of any machine.
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        if let Some(map) = &mut self.map {
            map.insert(name, number);
        } else if !beyond {
            let mut map: HashMap<_, _> = self.names.iter().copied().zip(0..).collect();
            map.insert(name, number);
            self.map = Some(map);
        }
        self.names.push(name);
        self.next.push(0);
        number
    }
}

/// What was said of each number, in the order in which it was said.
pub(crate) struct Grouped<T> {
    items: Vec<T>,
    /// Where the items of each number begin, and the end.
    begins: Vec<usize>,
}

impl<T: Copy> Grouped<T> {
    /// `items` with their numbers, all below `count`.
    pub(crate) fn new(count: usize, items: &[(u32, T)]) -> Self {
        let mut begins = vec![0; count + 1];
        for (number, _) in items {
            begins[*number as usize + 1] += 1;
        }
        for number in 0..count {
            begins[number + 1] += begins[number];
        }
        let mut places = begins.clone();
        let mut grouped: Vec<Option<T>> = vec![None; items.len()];
        for (number, item) in items {
            let place = &mut places[*number as usize];
            grouped[*place] = Some(*item);
            *place += 1;
        }
        Self { items: grouped.into_iter().flatten().collect(), begins }
    }

    pub(crate) fn of(&self, number: usize) -> &[T] {
        let range = self.begins.get(number).zip(self.begins.get(number + 1));
        range.and_then(|(begin, end)| self.items.get(*begin..*end)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a map would number and group them, whatever the order of the lists.
        #[test]
        fn names_are_numbered_as_by_a_map(
            lists in prop::collection::vec(prop::collection::vec(0u8..12, 0..14), 0..6),
            sorted in any::<bool>(),
        ) {
            let name = |n: &u8| TensorName::new(format!("t{n}")).unwrap();
            let mut lists: Vec<Vec<TensorName>> =
                lists.iter().map(|list| list.iter().map(name).collect()).collect();
            if sorted {
                lists.iter_mut().for_each(|list| list.sort());
            }
            let (mut names, mut items) = (Names::default(), Vec::new());
            let mut expected: BTreeMap<&TensorName, (u32, Vec<usize>)> = BTreeMap::new();
            let all = lists.iter().flat_map(|list| list.iter().enumerate());
            for (met, (place, name)) in all.enumerate() {
                if place == 0 {
                    names.begin_list();
                }
                let number = names.number(name);
                let fresh = u32::try_from(expected.len()).unwrap();
                let known = expected.entry(name).or_insert((fresh, Vec::new()));
                prop_assert_eq!(known.0, number);
                known.1.push(met);
                items.push((number, met));
            }
            prop_assert_eq!(names.len(), expected.len());
            let grouped = Grouped::new(names.len(), &items);
            for (name, (number, items)) in expected {
                prop_assert_eq!(names.find(name), Some(number));
                prop_assert_eq!(grouped.of(number as usize), items);
            }
            prop_assert_eq!(names.find(&TensorName::new("none").unwrap()), None);
        }
    }
}
