package org.kdlite.demo.ui

import org.kdlite.demo.core.LatencySummary
import org.kdlite.demo.core.ModelInfo
import org.kdlite.demo.core.Pixels
import org.kdlite.demo.core.Score

/** What the main screen shows. */
sealed interface ClassifyState {
    /** The model is being opened. */
    data object Loading : ClassifyState

    /** There is no model to run; [sentence] says why. */
    data class Unusable(val sentence: String) : ClassifyState

    /** The model waits for an image, or has classified one. */
    data class Ready(val info: ModelInfo, val outcome: Outcome? = null) : ClassifyState
}

/** What an image was taken for, and how long that took; no scores where the model gave what is no number. */
class Outcome(val scores: List<Score>, val milliseconds: Double, val warmUp: Double, val recent: LatencySummary?)

/** Which image the main screen has. */
sealed interface Chosen {
    /** How it is kept over rotation and process death. */
    val saved: String

    data object Nothing : Chosen {
        override val saved = ""
    }

    data class BundledSample(val index: Int) : Chosen {
        override val saved = "sample $index"
    }

    /** The photo that is kept, see [PickedImage]. */
    data object Photo : Chosen {
        override val saved = "photo"
    }

    /** A photo to be taken over. */
    data class NewPhoto(val uri: String) : Chosen {
        override val saved = "new photo $uri"
    }

    companion object {
        fun restored(saved: String?): Chosen = when {
            saved == Photo.saved -> Photo
            saved != null && saved.startsWith("new photo ") -> NewPhoto(saved.removePrefix("new photo "))
            saved != null && saved.startsWith("sample ") ->
                saved.removePrefix("sample ").toIntOrNull()?.let(::BundledSample) ?: Nothing
            else -> Nothing
        }
    }
}

/** An image to be on screen. Slow to make: not on the main thread. */
class ShownImage(val pixels: Pixels, val name: String) {
    val bitmap = pixels.toBitmap()
}
