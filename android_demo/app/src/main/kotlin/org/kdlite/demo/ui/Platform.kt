package org.kdlite.demo.ui

import android.content.Intent
import android.content.pm.PackageManager
import android.os.Build
import android.provider.MediaStore
import android.view.View
import android.view.WindowInsets

// All that asks for more than Android 8.0 (API 26) is in this file; the check compiles the rest against it.

/** The system's photo picker, which needs no permission; before Android 13 its file picker for images. */
fun pickImageIntent(packages: PackageManager): Intent {
    if (Build.VERSION.SDK_INT >= 33) {
        val picker = Intent(MediaStore.ACTION_PICK_IMAGES).setType("image/*") // else videos as well
        if (picker.resolveActivity(packages) != null) return picker
    }
    return Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
}

/** Keeps a screen's content clear of the system's bars, cutouts and keyboard. */
fun View.padForSystemBars() {
    setOnApplyWindowInsetsListener { view, insets ->
        if (Build.VERSION.SDK_INT >= 30) {
            val kinds = WindowInsets.Type.systemBars() or WindowInsets.Type.displayCutout() or WindowInsets.Type.ime()
            val bars = insets.getInsets(kinds)
            view.setPadding(bars.left, bars.top, bars.right, bars.bottom)
        } else {
            @Suppress("DEPRECATION")
            view.setPadding(
                insets.systemWindowInsetLeft,
                insets.systemWindowInsetTop,
                insets.systemWindowInsetRight,
                insets.systemWindowInsetBottom,
            )
        }
        insets
    }
}

/** A heading, to screen readers that know such. */
fun View.markHeading() {
    if (Build.VERSION.SDK_INT >= 28) isAccessibilityHeading = true
}
