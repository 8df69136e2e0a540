//! The packed digits are the published ones.

#[path = "../examples/data/mod.rs"]
mod data;

#[test]
fn the_published_counts_and_pixels_come_out() {
    let (images, labels) = data::digits();
    assert_eq!((images.len(), labels.len()), (1797 * 64, 1797));

    let count = |digit| labels.iter().filter(|&&label| label == digit).count();
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(count),
        [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    );

    let pixels: Vec<f32> = images.iter().map(|pixel| pixel * 16.0).collect();
    assert!(pixels.iter().all(|p| p.fract() == 0.0 && (0.0..=16.0).contains(p)));
    assert!((pixels.iter().map(|&p| f64::from(p)).sum::<f64>() - 561_718.0).abs() < 0.5);

    let image = |index: usize| pixels.chunks(64).nth(index).unwrap().chunks(8);
    let row = |index, row| image(index).nth(row).unwrap().to_vec();
    assert_eq!(row(0, 0), [0.0, 0.0, 5.0, 13.0, 9.0, 1.0, 0.0, 0.0]);
    assert_eq!(row(0, 1), [0.0, 0.0, 13.0, 15.0, 10.0, 15.0, 5.0, 0.0]);
    assert_eq!(row(1, 3), [0.0, 7.0, 15.0, 16.0, 16.0, 2.0, 0.0, 0.0]);
    assert_eq!(row(1796, 7), [0.0, 1.0, 8.0, 12.0, 14.0, 12.0, 1.0, 0.0]);
    assert_eq!((labels.first(), labels.last()), (Some(&0), Some(&8)));
}
